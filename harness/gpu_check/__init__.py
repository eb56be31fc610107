"""`make gpu-check OUT=folder`: one call that settles what only a GPU can, without a network, in at most nine minutes.

Stages (`plan.STAGES`) run one after the other, and each writes one JSON file as it ends. `requirements` says what must
be installed, `plan` how much is run, `house` is the only file that speaks the engine's interface, `fixture` holds
questions with committed answers.
"""
