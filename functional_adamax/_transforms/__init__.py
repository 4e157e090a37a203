"""What a chain holds beside methods: stages, guards, averages, wrappers."""
