"""What is watched, what is wrong, and who is told: docs/monitor.md. The rules are SQL: `migrations/*_monitor_*`."""
