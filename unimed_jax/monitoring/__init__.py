"""What a run measures about itself: metrics, throughput, profiles, FLOPs."""
