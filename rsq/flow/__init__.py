"""How signatures become flows: planned as numbered calls, started, and found again by id. What users combine stands in
`rsq.canvas`; what happens on the server, in `rsq.broker`."""
