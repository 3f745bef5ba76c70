"""HTML reports and charts. Knows no task: tasks and evaluators bring their sections."""
