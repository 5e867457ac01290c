"""The reference operator's own settings: tiles, presets, scheduling."""
