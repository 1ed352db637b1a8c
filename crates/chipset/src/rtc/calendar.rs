//! Seconds since 1970 to the clock chip's digits and back (Gregorian calendar, no leap seconds).

/// Seconds in a day.
pub(super) const DAY_S: i64 = 86_400;

/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;
/// Days of a 400-year cycle.
const CYCLE_DAYS: i64 = 146_097;

/// A point in time as a calendar and clock show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

impl Date {
    /// The date at `seconds` since 1970. Counted in years that begin in March, so that the leap day comes last: the
    /// months from March on then have a regular rhythm of 153 days in five.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY_S) + EPOCH_DAYS, seconds.rem_euclid(DAY_S));
        let (cycle, day) = (days.div_euclid(CYCLE_DAYS), days.rem_euclid(CYCLE_DAYS));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (march_based_day, month) = (day - (153 * month + 2) / 5, (month + 2) % 12 + 1);
        Self {
            year: cycle * 400 + year + i64::from(month <= 2),
            month,
            day: march_based_day + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// The inverse; fields out of their ranges carry over as in arithmetic, since guests may write anything.
    pub(super) fn to_unix(self) -> i64 {
        let years = self.year + (self.month - 1).div_euclid(12);
        let month = (self.month - 1).rem_euclid(12) + 1;
        let year = years - i64::from(month <= 2);
        let (cycle, in_cycle) = (year.div_euclid(400), year.rem_euclid(400));
        let in_year = (153 * ((month + 9) % 12) + 2) / 5 + self.day - 1;
        let days = cycle * CYCLE_DAYS + in_cycle * 365 + in_cycle / 4 - in_cycle / 100 + in_year - EPOCH_DAYS;
        days * DAY_S + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// 1 for Sunday to 7 for Saturday.
    pub(super) fn weekday(self) -> i64 {
        // 1 January 1970 was a Thursday.
        (self.to_unix().div_euclid(DAY_S) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day| Date { year, month, day, hour: 0, minute: 0, second: 0 };
        assert_eq!(Date::from_unix(0), date(1970, 1, 1));
        assert_eq!(Date::from_unix(951_782_400), date(2000, 2, 29));
        assert_eq!(date(2000, 2, 29).weekday(), 3);
        assert_eq!(date(2100, 3, 1).to_unix() - date(2100, 2, 28).to_unix(), DAY_S);
        let last = Date { hour: 23, minute: 59, second: 59, ..date(2037, 12, 31) };
        assert_eq!((last.to_unix(), Date::from_unix(2_145_916_799)), (2_145_916_799, last));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -100_000_000_000..400_000_000_000i64) {
            let date = Date::from_unix(seconds);
            prop_assert_eq!(date.to_unix(), seconds);
            prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
        }
    }
}
