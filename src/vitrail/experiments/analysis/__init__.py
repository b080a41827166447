"""From pictures to numbers: measurement, intervals, rankings."""
