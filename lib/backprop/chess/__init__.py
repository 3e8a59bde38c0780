"""Concept backpropagation on chess boards (document 5)."""
