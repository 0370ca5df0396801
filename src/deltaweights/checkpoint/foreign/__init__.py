"""Layouts that this program does not read: what a folder without weights is, and what to give or run instead."""
