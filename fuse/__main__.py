from fuse.cli import run

run()
