"""What the tools run: each module or folder has `main(argv) -> exit code`."""
