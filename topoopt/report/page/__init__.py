"""What the HTML page shows, as plain values: each file is one part of it, `topoopt.report.html` puts them together."""
