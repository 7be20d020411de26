"""Analysis of run directories: tables, plots and reports. Imports no torch and reads only records of trainings."""
