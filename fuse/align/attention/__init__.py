"""`fuse inspect attention`: where each member looks in an image when it answers."""
