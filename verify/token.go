package verify

import (
	"fmt"

	"bulla/record"
)

// token checks the time of an RFC 3161 token: the reading of the clock that it rests on follows from a round before it in the log, the
// token states what that reading says, and its own entry was stamped just after. Every violation is one of time.token.
func (f *fold) token(e *record.Entry) {
	t, err := record.ParseToken(e.Body)
	if err != nil {
		f.r.find(Finding{Rule: "entry.body", Index: at(e.Index), Expected: "a body of kind token", Found: fmt.Sprintf("%.300s", err.Error())})
		return
	}
	if found := f.clock.Reading(t.Reading); len(found) > 0 {
		x := found[0]
		f.r.find(Finding{Rule: "time.token", Index: at(e.Index), Expected: "body." + x.Field + " " + x.Expected, Found: fmt.Sprintf("%.300s", x.Found)})
	} else if err := t.Agrees(e.Stamp); err != nil {
		f.r.find(Finding{Rule: "time.token", Index: at(e.Index), Expected: "a token's time as its reading of the clock gives it, just before its entry", Found: "body." + err.Error()})
	}
}
