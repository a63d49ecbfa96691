"""See the package layout in docs/architecture.md."""
