"""HRSAM++ as published, and what differs in its authors' runs."""
