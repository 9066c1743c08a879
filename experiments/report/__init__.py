"""A report: its numbers, what they allow one to say, and how it looks.

`model` is the data and `pages` all that is made of them. In between, `judging`
says what is resolved, `wording` what is to be said, in the words of
templates/words.toml; `tables`, `figures` and `degree` show the numbers.
Pages are `sections`, rendered and written by `rendering`.
"""
