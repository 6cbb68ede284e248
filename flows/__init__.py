"""All of Prefect and no arithmetic: the flow and one thin task per stage."""
