"""The report: one HTML file about one run or several that needs nothing beside itself."""
