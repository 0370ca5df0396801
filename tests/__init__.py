"""Tests: real files, real processes, laws as properties."""
