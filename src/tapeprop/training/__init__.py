"""Training: data, metrics, the fit loop, callbacks. Public names live in `tapeprop.losses`, `.optimizers`,
`.schedules`, `.callbacks`.
"""
