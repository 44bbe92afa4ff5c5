"""The compiler's passes from a circuit's program to a smaller model, one a file."""
