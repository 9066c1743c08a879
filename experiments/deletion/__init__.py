"""A deletion request: from a list of ids to a model and a record.

| file | what it holds |
|---|---|
| `ids` | which images a request names |
| `record` | what is written down of a request, its hashes and its page |
| `basis` | a model with the data that it knows and the requests before |
| `evidence` | what the outputs of a model say of what it was to forget |
| `bounds` | what a model may measure before an exact retrain takes its place |
| `request` | what was asked, checked, and the stages that it takes |
| `writing` | what a record says of what was done |
| `making` | the model that forgot and its record, in files |
| `checking` | all of that computed again from the files |
"""
