package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"bulla/api"
	"bulla/record"
)

// searchFlags are what search and timeline have in common.
type searchFlags struct {
	conditions map[string]*string // by the names of api.QueryFields
	format     string
	classes    string
	index      string
	scan       bool
}

// queryHelp says what each condition is.
var queryHelp = map[string]string{
	"since":       "received at or after this time (true UTC): 2026-11-23T01:40:00Z, or a day",
	"until":       "received before this time",
	"kind":        "kind of the entry: event, access, system, ...",
	"type":        "type of the event, as auth.login; auth.* is all that begin with auth.",
	"actor":       "who did it: id, name, or on whose behalf",
	"target":      "id of what it was done to",
	"session":     "session_id",
	"transaction": "transaction_id",
	"trace":       "trace_id",
	"uid":         "uid of the producer",
	"unit":        "systemd unit of the producer",
	"src":         "source address or network, as 192.0.2.0/24",
	"outcome":     "success, failure or unknown",
	"severity":    "the least severity, 1 to 24",
	"text":        "text in a name, string or number of the event's data; case does not count",
}

func (f *searchFlags) add(cmd *cobra.Command) {
	f.conditions = map[string]*string{}
	for _, name := range api.QueryFields {
		f.conditions[name] = cmd.Flags().String(name, "", queryHelp[name])
	}
	cmd.Flags().StringVar(&f.index, "index", "", "directory for indices of exports (default bulla/index in the user's cache)")
	cmd.Flags().BoolVar(&f.scan, "scan", false, "read every entry of an export, without an index")
}

// query reads the conditions.
func (f *searchFlags) query(cmd *cobra.Command) (*api.Query, url.Values, error) {
	values := url.Values{}
	for _, name := range api.QueryFields {
		if cmd.Flags().Changed(name) {
			values.Set(name, *f.conditions[name])
		}
	}
	q, err := parseQuery(values)
	return q, values, err
}

// parseQuery reads conditions that were given by flags of their names.
func parseQuery(values url.Values) (*api.Query, error) {
	q, err := api.ParseQuery(values)
	var field *record.FieldError
	if errors.As(err, &field) {
		return nil, usagef("--%s: %q %s", field.Field, values.Get(field.Field), field.Reason)
	}
	return q, err
}

// searchRun is one search: what is wanted, and how it is printed.
type searchRun struct {
	flags    searchFlags
	query    *api.Query
	values   url.Values
	limit    uint64
	proof    bool
	receipts string // directory to write them to

	out     hitWriter
	printed uint64
	anytime uint64 // of these, have no estimate of UTC
	more    bool   // than the limit
	served  *appliance
	summary searchSummary
}

// searchSummary says how complete a search was.
type searchSummary struct {
	Log     string  `json:"log"`
	Size    uint64  `json:"size"`              // of the log
	Looked  uint64  `json:"looked"`            // entries that were read; an index spares the others
	Found   uint64  `json:"found"`             // results printed
	More    bool    `json:"more"`              // there are more results than --limit
	Index   bool    `json:"index"`             // an index was used
	Damaged []fault `json:"damaged,omitempty"` // what could not be searched
	Omitted uint64  `json:"omitted,omitempty"` // damage that is not listed
}

func (t *tool) searchCommand() *cobra.Command {
	s := &searchRun{}
	cmd := &cobra.Command{
		Use:   "search [EVIDENCE]",
		Short: "Find entries, in an export or on the appliance",
		Long: `search finds the entries that meet every condition given, in EVIDENCE, an export (a directory or an uncompressed tar file), or without it
in a running appliance's log.

Time is true UTC: an entry was received somewhere within its system's time, corrected by the offset, plus or minus the bound. It is found if it
may have been received in the time asked for; one without an estimate may have been received at any time.

In an export of 65,536 entries or more the first search makes an index, in the user's cache; the next one takes no time. The index is never
believed: what it finds is confirmed on the entries. search trusts nobody and verifies nothing: whether the log is what it claims to be is what
bulla verify finds out. With --proof each result carries its receipt under the export's checkpoint, and with --receipts DIR the receipts are
written as files that bulla verify --receipt, and others, check.

Exit code 2: a part of the evidence could not be searched, and it is said which.`,
		Example: `  bulla search /media/evidence --session s-77
  bulla search evidence.tar --type 'auth.*' --outcome failure --since 2026-11-01 --until 2026-12-01 --format csv
  bulla search /media/evidence --transaction t-9 --receipts receipts
  bulla search --actor alice --src 192.0.2.0/24 --purpose 'case 4711'`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			var err error
			if s.query, s.values, err = s.flags.query(cmd); err != nil {
				return err
			}
			if err := t.prepareSearch(s); err != nil {
				return err
			}
			if len(given) == 1 {
				err = t.searchExport(cmd.Context(), s, given[0])
			} else {
				err = t.searchAppliance(cmd.Context(), s)
			}
			return t.finishSearch(s, err)
		},
	}
	s.flags.add(cmd)
	cmd.Flags().StringVar(&s.flags.format, "format", "table", "table, ndjson, csv or ocsf")
	cmd.Flags().StringVar(&s.flags.classes, "ocsf-classes", "", "file that says which OCSF class and activity a type is: lines of TYPE CLASS_UID ACTIVITY_ID")
	cmd.Flags().Uint64Var(&s.limit, "limit", 0, "the most results to print; 0: all")
	cmd.Flags().BoolVar(&s.proof, "proof", false, "give each result its receipt; needs --json, --format ndjson, or --receipts")
	cmd.Flags().StringVar(&s.receipts, "receipts", "", "directory to write each result's receipt to, as INDEX.json and INDEX.tlog-proof")
	return cmd
}

// prepareSearch checks how the results are to be printed.
func (t *tool) prepareSearch(s *searchRun) error {
	format := s.flags.format
	if t.json {
		if format != "table" {
			return usagef("--json is a format of its own: leave out --format")
		}
		format = "json"
	}
	if s.proof && s.receipts == "" && format != "json" && format != "ndjson" {
		return usagef("--proof: a %s has no room for receipts; write them to files with --receipts DIR", format)
	}
	classes, err := readClasses(s.flags.classes)
	if err != nil {
		return err
	}
	if s.out, err = newHitWriter(t.out, format, classes); err != nil {
		return err
	}
	if s.receipts != "" {
		return os.MkdirAll(s.receipts, 0o755)
	}
	return nil
}

// errEnough ends a search that has printed what was wanted.
var errEnough = errors.New("enough")

// take prints a hit.
func (t *tool) take(ctx context.Context, s *searchRun, h *hit) error {
	if s.limit > 0 && s.printed == s.limit {
		s.more = true
		return errEnough
	}
	s.printed++
	if !h.entry.Stamp.HasEstimate {
		s.anytime++
	}
	var receipt []byte
	if s.proof || s.receipts != "" {
		r, err := s.receipt(ctx, h)
		if err != nil {
			return err
		}
		if receipt, err = r.MarshalJSON(); err != nil {
			return err
		}
		if s.receipts != "" {
			if err := writeReceipt(s.receipts, r, receipt); err != nil {
				return err
			}
		}
		if !s.proof {
			receipt = nil
		}
	}
	return s.out.put(h, receipt)
}

func (s *searchRun) receipt(ctx context.Context, h *hit) (record.Receipt, error) {
	if h.log != nil {
		return h.log.receipt(ctx, h)
	}
	r, err := s.served.receipt(ctx, h.entry.Index)
	if err == nil && !bytes.Equal(r.Entry, h.raw) {
		err = coded(exitTampered, fmt.Errorf("the appliance's receipt is of another entry %d than was found", h.entry.Index))
	}
	return r, err
}

// searchExport searches an export.
func (t *tool) searchExport(ctx context.Context, s *searchRun, path string) error {
	a, err := openArchive(ctx, path)
	if err != nil {
		return err
	}
	defer a.done()
	s.summary = searchSummary{Log: a.head.Origin, Size: a.head.Size}
	if err := s.out.begin(&s.summary); err != nil {
		return err
	}
	on := t.searchOf(ctx, a, &s.flags, s.query)
	err = on.run(ctx, func(h *hit) error { return t.take(ctx, s, h) })
	if errors.Is(err, errIndex) { // found damaged before anything was printed
		t.note("%v: every entry is read", err)
		on.index = nil
		err = on.run(ctx, func(h *hit) error { return t.take(ctx, s, h) })
	}
	s.summary.Looked, s.summary.Index, s.summary.Damaged, s.summary.Omitted = on.looked, on.index != nil, on.damaged, on.more
	return err
}

// indexFrom is the size of a log from which an index is made: a smaller one is read in no time.
const indexFrom = 1 << 16

// searchOf prepares to search an export, by its index if it has one or should have one. Without an index every entry is read: that is
// slow, and as good.
func (t *tool) searchOf(ctx context.Context, a *archive, f *searchFlags, q *api.Query) *search {
	s := &search{a: a, q: q, progress: t.progress("searching")}
	if f.scan {
		return s
	}
	base := f.index
	if base == "" {
		var err error
		if base, err = cacheDir(); err != nil {
			t.note("no index: %v", err)
			return s
		}
	}
	dir := indexPath(base, a.head)
	x, err := openIndex(dir, a.head)
	if errors.Is(err, errIndex) && (f.index != "" || a.head.Size >= indexFrom) && len(queryTerms(q)) > 0 {
		if _, there := os.Stat(dir); there == nil {
			t.note("%v: it is made anew", err)
		}
		x, err = t.makeIndex(ctx, dir, a)
	}
	switch {
	case err == nil:
		s.index = x
	case errors.Is(err, errNotTheLog):
		t.note("no index: %v; every entry is read. bulla verify says what is wrong", err)
	case !errors.Is(err, errIndex) && ctx.Err() == nil:
		t.note("no index: %v; every entry is read", err)
	}
	return s
}

func (t *tool) makeIndex(ctx context.Context, dir string, a *archive) (*index, error) {
	p := t.progress("indexing")
	err := buildIndex(ctx, dir, a, p.show)
	p.clear()
	if err != nil {
		return nil, err
	}
	return openIndex(dir, a.head)
}

// note says something beside the results.
func (t *tool) note(format string, args ...any) { fmt.Fprintf(t.err, "bulla: "+format+"\n", args...) }

// searchAppliance asks a running appliance, a part of the log at a time.
func (t *tool) searchAppliance(ctx context.Context, s *searchRun) error {
	a, err := t.connect(ctx)
	if err != nil {
		return err
	}
	s.served = a
	s.summary = searchSummary{Log: a.log.Origin, Size: a.log.Size}
	if err := s.out.begin(&s.summary); err != nil {
		return err
	}
	p := t.progress("searching")
	defer p.clear()
	for from := uint64(0); ; {
		page := uint64(1000)
		if s.limit > 0 {
			page = min(page, s.limit-s.printed+1)
		}
		s.values.Set("from", strconv.FormatUint(from, 10))
		s.values.Set("limit", strconv.FormatUint(page, 10))
		var found api.Page
		if err := a.getJSON(ctx, a.prefix+"/v1/search?"+s.values.Encode(), &found); err != nil {
			return err
		}
		s.summary.Size = found.Size
		for _, raw := range found.Entries {
			e, ok, err := s.query.Match(raw)
			if err != nil || !ok || e.Log != a.log.Origin {
				return coded(exitUnavailable, fmt.Errorf("the appliance's answer: an entry that was not asked for (%v)", err))
			}
			p.clear()
			if err := t.take(ctx, s, newHit(nil, raw, e)); err != nil {
				return err
			}
		}
		if found.Next == nil {
			s.summary.Looked = found.Size
			return nil
		}
		if *found.Next <= from {
			return coded(exitUnavailable, errors.New("the appliance's answer: pages go round in a circle"))
		}
		from = *found.Next
		s.summary.Looked = from
		p.show(from, found.Size)
	}
}

// finishSearch ends the output and says what was left out.
func (t *tool) finishSearch(s *searchRun, err error) error {
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	s.summary.Found, s.summary.More = s.printed, s.more
	if err := s.out.end(&s.summary); err != nil {
		return err
	}
	if s.printed == 0 && !t.json {
		t.note("nothing found among the %d entries of %s", s.summary.Size, printable(s.summary.Log, 80))
	}
	if s.anytime > 0 && (s.query.Since != nil || s.query.Until != nil) && !t.json {
		t.note("%d of %d results have no estimate of UTC: they may have been received at any time", s.anytime, s.printed)
	}
	if s.more {
		t.note("there are more results than --limit %d", s.limit)
	}
	for _, d := range s.summary.Damaged {
		t.note("not searched: %s", printable(d.Why, 300))
	}
	if s.summary.Omitted > 0 {
		t.note("not searched: %d more places", s.summary.Omitted)
	}
	if len(s.summary.Damaged) > 0 {
		return coded(exitNotCheckable, errors.New("the search is not complete"))
	}
	return nil
}
