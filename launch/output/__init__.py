"""Files and messages that a run leaves: directory, journal, metrics, board, summary.

Data flows one way: the run's loop hands over records, this folder writes or draws them. `journal_reader.py` reads them
back for `offbeat replay`. Must not start actors or decide anything about the run.
"""
