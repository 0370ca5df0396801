"""From a folder nobody looks at to a target that is whole or absent."""
