"""What a plugin needs that runs another library's attacks: the model handed over, its state kept, its images judged.

A backend is one function (`Library`) between `ServedModel`, which any library of PyTorch attacks can call, and
`BackendThreat`, which runs it on samples, books what it costs and holds it to the budget.
"""
