package record

import "time"

// timeLayout is RFC 3339 in UTC with exactly nine digits.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// AppendTime appends ns, nanoseconds since 1970 without leap seconds, in the one form that times have in the log:
// 2026-11-23T01:40:00.123456789Z.
func AppendTime(dst []byte, ns int64) []byte {
	return time.Unix(0, ns).UTC().AppendFormat(dst, timeLayout)
}

// ParseTime reads what AppendTime makes, for the years 1678 to 2261.
func ParseTime(s string) (ns int64, err error) {
	if reason := checkTime([]byte(s)); reason != "" {
		return 0, refuse("", "%s", reason)
	}
	ns, ok := scanTime([]byte(s))
	if !ok {
		return 0, refuse("", "must lie between the years 1678 and 2261")
	}
	return ns, nil
}

// scanTime reads a time of the years that nanoseconds in 64 bits hold completely.
func scanTime(s []byte) (ns int64, ok bool) {
	if checkTime(s) != "" {
		return 0, false
	}
	year := number2(s, 0)*100 + number2(s, 2)
	if year < 1678 || year > 2261 {
		return 0, false
	}
	nano := 0
	for _, c := range s[20:29] {
		nano = nano*10 + int(c-'0')
	}
	t := time.Date(year, time.Month(number2(s, 5)), number2(s, 8), number2(s, 11), number2(s, 14), number2(s, 17), nano, time.UTC)
	return t.UnixNano(), true
}

func number2(s []byte, i int) int { return int(s[i]-'0')*10 + int(s[i+1]-'0') }

// checkTime accepts a valid time of the years 0000 to 9999 in the form of timeLayout. A leap second is refused: in UTC as
// computers keep it there is none.
func checkTime(s []byte) string {
	const reason = "must be a valid time in UTC with nine digits, as 2026-11-23T01:40:00.123456789Z"
	if len(s) != len(timeLayout) {
		return reason
	}
	for i := range timeLayout {
		switch c := timeLayout[i]; {
		case '0' <= c && c <= '9':
			if s[i] < '0' || s[i] > '9' {
				return reason
			}
		case s[i] != c:
			return reason
		}
	}
	year, month, day := number2(s, 0)*100+number2(s, 2), number2(s, 5), number2(s, 8)
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return reason
	}
	if number2(s, 11) > 23 || number2(s, 14) > 59 || number2(s, 17) > 59 {
		return reason
	}
	return ""
}

func daysIn(year, month int) int {
	switch {
	case month == 4 || month == 6 || month == 9 || month == 11:
		return 30
	case month != 2:
		return 31
	case year%4 == 0 && (year%100 != 0 || year%400 == 0):
		return 29
	}
	return 28
}
