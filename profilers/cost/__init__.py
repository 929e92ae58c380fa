"""The cost model: the time of one operator call on a device, with a tested interval."""
