"""Quality of a candidate: its proxy model trained on tasks."""
