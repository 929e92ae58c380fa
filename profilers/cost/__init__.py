"""How long one operator call takes on a device, with a tested interval."""
