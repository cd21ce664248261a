from fuse.cli import main

main()
