"""Reports: views of a history for people. Know the ledger's fold, not training nor families."""
