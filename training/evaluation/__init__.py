"""The evaluation: questions in wordings and spellings that training never saw, judged by expected facts."""
