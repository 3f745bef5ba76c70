"""Volumes: sub-volumes put out of order and masked; inference window by window."""
