package record

// isEvent reports whether src is a valid event in canonical form, and sets key, which may be nil, if it is; it allocates nothing but
// the strings of the key. When it says no, canonicalEvent decides.
func isEvent(src []byte, key *EventKey) bool {
	if len(src) > MaxEvent || scanEvent(src, 0, key) != len(src) {
		if key != nil {
			*key = EventKey{}
		}
		return false
	}
	return true
}

// scanEvent reads an event of any length.
func scanEvent(b []byte, i int, key *EventKey) int {
	if i >= len(b) || b[i] != '{' {
		return -1
	}
	var name []byte
	typed := false
	for i++; ; i++ {
		if name, i = scanName(b, i, name); i < 0 {
			return -1
		}
		from := i
		switch string(name) {
		case "actor":
			i = scanMembers(b, i, scanActor)
		case "data":
			if i >= len(b) || b[i] != '{' {
				return -1
			}
			i = scanObject(b, i, MaxDepth-2)
		case "id":
			if i = scanText(b, i, MaxID); i > 0 && key != nil {
				key.ID = string(unescape(b[from+1 : i-1]))
			}
		case "outcome":
			i = scanChecked(b, i, checkOutcome)
		case "session_id", "source", "transaction_id":
			i = scanText(b, i, MaxString)
		case "severity":
			_, i = scanInt(b, i, 1, 24)
		case "span_id":
			i = scanChecked(b, i, checkSpanID)
		case "src":
			i = scanMembers(b, i, scanSrc)
		case "stream":
			i = scanStream(b, i, key)
		case "target":
			i = scanMembers(b, i, scanTarget)
		case "time":
			i = scanChecked(b, i, checkTime)
		case "trace_id":
			i = scanChecked(b, i, checkTraceID)
		case "type":
			i = scanChecked(b, i, checkType)
			typed = true
		default:
			return -1
		}
		if i < 0 || i >= len(b) || b[i] != ',' {
			if !typed {
				return -1
			}
			return scanClose(b, i)
		}
	}
}

// scanMembers steps over an object whose members are sorted; member steps over the value of one, or returns -1.
func scanMembers(b []byte, i int, member func(name, b []byte, i int) int) int {
	var name []byte
	if i >= len(b) || b[i] != '{' {
		return -1
	}
	for i++; ; i++ {
		if name, i = scanName(b, i, name); i < 0 {
			return -1
		}
		if i = member(name, b, i); i < 0 || i >= len(b) || b[i] != ',' {
			return scanClose(b, i)
		}
	}
}

func scanActor(name, b []byte, i int) int {
	switch string(name) {
	case "id", "name", "on_behalf_of", "type":
		return scanText(b, i, MaxString)
	}
	return -1
}

func scanTarget(name, b []byte, i int) int {
	switch string(name) {
	case "id", "type":
		return scanText(b, i, MaxString)
	}
	return -1
}

func scanSrc(name, b []byte, i int) int {
	switch string(name) {
	case "ip":
		return scanChecked(b, i, checkIP)
	case "port":
		_, i = scanInt(b, i, 0, 65535)
		return i
	}
	return -1
}

// scanStream expects both members: they are required, and sorted.
func scanStream(b []byte, i int, key *EventKey) int {
	const head, middle = `{"id":`, `,"n":`
	if i = scanLiteral(b, i, head); i < 0 {
		return -1
	}
	from := i
	if i = scanText(b, i, MaxID); i < 0 {
		return -1
	}
	id := b[from+1 : i-1]
	if i = scanLiteral(b, i, middle); i < 0 {
		return -1
	}
	n, i := scanInt(b, i, 0, MaxInt)
	if i > 0 && key != nil {
		key.Stream, key.N, key.HasStream = string(unescape(id)), n, true
	}
	return scanClose(b, i)
}

// scanClose steps over the brace that ends an object.
func scanClose(b []byte, i int) int {
	if i < 0 || i >= len(b) || b[i] != '}' {
		return -1
	}
	return i + 1
}

// scanText reads a string of 1 to limit bytes.
func scanText(b []byte, i, limit int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	end := scanString(b, i)
	if end < 0 || end == i+2 {
		return -1
	}
	if written := b[i+1 : end-1]; len(written) > limit && len(unescape(written)) > limit {
		return -1
	}
	return end
}

// scanChecked reads a string that a check of the reference accepts. None of these has a character that needs an escape.
func scanChecked(b []byte, i int, check func([]byte) string) int {
	end := scanText(b, i, MaxString)
	if end < 0 || check(b[i+1:end-1]) != "" {
		return -1
	}
	return end
}
