"""`fuse inspect encoders`: how alike the features of several vision encoders are."""
