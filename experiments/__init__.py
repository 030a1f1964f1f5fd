"""Recipes, as package data: one folder a system."""
