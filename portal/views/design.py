"""Design: systems around the project, connectors on machines."""
