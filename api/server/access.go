package server

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"bulla/ledger"
	"bulla/record"
)

// What is done with a log, as entries of kind access name it.
const (
	actionRead      = "read"      // entries and their proofs, one by one or in pages
	actionExport    = "export"    // bundles of entries
	actionChallenge = "challenge" // a seal that carries the reader's nonce
	actionSeal      = "seal"      // a seal on demand
)

// purposeHeader is the header of a request that says what somebody reads for.
const purposeHeader = "Bulla-Purpose"

// disclosure is what an answer is about to give out of a log.
type disclosure struct {
	action   string
	query    string   // where it is not simply a range
	from, to uint64   // the entries
	entries  [][]byte // they themselves, to see whose they are; nil where they are not at hand
}

// purpose is what the caller states to read for; empty if nothing.
func (c *call) purpose() (string, error) {
	values := c.r.Header.Values(purposeHeader)
	if len(values) == 0 {
		return "", nil
	}
	text := strings.TrimSpace(values[0])
	if len(values) > 1 || len(text) > record.MaxPurpose || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return "", &ledger.Refusal{Code: record.CodeInvalid, Field: purposeHeader, Message: fmt.Sprintf("must be one line of at most %d bytes of UTF-8", record.MaxPurpose)}
	}
	return text, nil
}

// reading is the role by which the caller may read the log; "" if it has none.
func (c *call) reading() string {
	switch r := c.log.Ledger.State().Roles(c.caller.UID, c.caller.Groups); {
	case r.Auditor:
		return "auditor"
	case r.Officer:
		return "officer"
	case r.Operator:
		return "operator"
	}
	return ""
}

// disclose returns when the log says durably that the caller reads d. Who reads only what it sent itself is not recorded.
func (c *call) disclose(d *disclosure) error {
	if d.from >= d.to || c.own(d.entries) {
		return nil
	}
	purpose, err := c.purpose()
	if err != nil {
		return err
	}
	return c.log.Ledger.Access(c.r.Context(), ledger.Reading{
		By: c.caller, Role: c.reading(), Action: d.action, Purpose: purpose, Query: d.query, From: d.from, To: d.to,
	})
}

// own reports whether all entries are events that the caller sent.
func (c *call) own(entries [][]byte) bool {
	if len(entries) == 0 || !c.log.Ledger.State().Roles(c.caller.UID, c.caller.Groups).Producer {
		return false
	}
	for _, b := range entries {
		if e, err := record.ParseEntry(b); err != nil || e.Producer == nil || e.Producer.UID != c.caller.UID {
			return false
		}
	}
	return true
}
