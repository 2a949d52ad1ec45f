"""What is trained: network, loss, scores and optimizer of each kind of task."""
