"""Experts: what they compute, and how other libraries' MLPs become some."""
