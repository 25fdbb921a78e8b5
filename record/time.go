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
	if len(s) != len(timeLayout) {
		return 0, false
	}
	midnight, ok1 := scanDate(s[:11])
	since, ok2 := scanTimeOfDay(s[11:])
	return midnight + since, ok1 && ok2
}

// scanDate reads a date and the T behind it, and returns its midnight.
func scanDate(s []byte) (ns int64, ok bool) {
	year, month, day, ok := date(s)
	if !ok || year < 1678 || year > 2261 {
		return 0, false
	}
	return time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).UnixNano(), true
}

// date reads a valid date of the years 0000 to 9999, and the T behind it.
func date(s []byte) (year, month, day int, ok bool) {
	_ = s[10]
	century, rest := number2(s, 0), number2(s, 2)
	year, month, day = century*100+rest, number2(s, 5), number2(s, 8)
	ok = century < 100 && rest < 100 && s[4] == '-' && s[7] == '-' && s[10] == 'T' &&
		1 <= month && month <= 12 && 1 <= day && day <= daysIn(year, month)
	return year, month, day, ok
}

// scanTimeOfDay reads what stands behind the T. A leap second is refused: in UTC as computers keep it there is none.
func scanTimeOfDay(s []byte) (ns int64, ok bool) {
	_ = s[18]
	hour, minute, second := number2(s, 0), number2(s, 3), number2(s, 6)
	if hour > 23 || minute > 59 || second > 59 || s[2] != ':' || s[5] != ':' || s[8] != '.' || s[18] != 'Z' {
		return 0, false
	}
	nano := 0
	for _, c := range s[9:18] {
		d := int(c - '0')
		if d > 9 {
			return 0, false
		}
		nano = nano*10 + d
	}
	return int64((hour*60+minute)*60+second)*int64(time.Second) + int64(nano), true
}

// number2 reads two digits; it is 100 or more where there are none such.
func number2(s []byte, i int) int {
	tens, ones := s[i]-'0', s[i+1]-'0'
	if tens > 9 || ones > 9 {
		return 100
	}
	return int(tens)*10 + int(ones)
}

// checkTime accepts a valid time of the years 0000 to 9999 in the form of timeLayout.
func checkTime(s []byte) string {
	if len(s) == len(timeLayout) {
		_, _, _, dateOK := date(s[:11])
		if _, ok := scanTimeOfDay(s[11:]); dateOK && ok {
			return ""
		}
	}
	return "must be a valid time in UTC with nine digits, as 2026-11-23T01:40:00.123456789Z"
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
