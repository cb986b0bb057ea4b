"""What comes from outside: text as it may be shown, and files and templates read under limits.

Everything here treats its input as chosen by somebody else: a judge's server, a data set, a model's directory. Imports
nothing heavy, and knows neither judges nor runs.
"""
