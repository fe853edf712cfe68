"""Schemas, backend choice and autograd of the operators."""
