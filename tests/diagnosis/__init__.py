"""What people really hold, and what is wrong with it: tables of cases, with the right answer to each."""
