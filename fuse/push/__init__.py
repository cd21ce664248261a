"""`fuse push`: a finished folder to a repository of the hub. The only place that sends anything to the hub."""
