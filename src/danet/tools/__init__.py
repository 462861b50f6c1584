"""What the other scripts do, a file or a folder each; none imports another."""
