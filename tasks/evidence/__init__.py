"""From finished runs to evidence: rows, claims, tables, charts, the report."""
