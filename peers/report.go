package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// report collects what was measured. Cases and stores are in the order of the code.
type report struct {
	Machine machine                             `json:"machine"`
	Rounds  int                                 `json:"rounds"`
	Seconds float64                             `json:"seconds"`
	Others  []float64                           `json:"used_by_others"` // share of the machine before each round, 0 to 1
	Cases   map[string]map[string][]measurement `json:"cases"`
	Ours    map[string][]fact                   `json:"ours,omitempty"`
}

// machine is what the run was made on.
type machine struct {
	Date     string   `json:"date"`
	CPU      string   `json:"cpu"`
	Cores    int      `json:"cores"`
	Kernel   string   `json:"kernel"`
	Disk     string   `json:"disk"`
	Go       string   `json:"go"`
	Bulla    string   `json:"bulla"`
	Versions []string `json:"peers"`
}

// fact is one number of a case that no peer has, of every round.
type fact struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

func newReport(s *settings) *report {
	return &report{Machine: thisMachine(s), Rounds: s.rounds, Seconds: s.seconds, Cases: map[string]map[string][]measurement{}, Ours: map[string][]fact{}}
}

// observe notes how busy the machine was before a round.
func (r *report) observe(others float64) { r.Others = append(r.Others, others) }

func (r *report) add(name, store string, m measurement) {
	if r.Cases[name] == nil {
		r.Cases[name] = map[string][]measurement{}
	}
	r.Cases[name][store] = append(r.Cases[name][store], m)
}

// note adds a value to a fact of a case.
func (r *report) note(name, what, unit string, value float64) {
	facts := r.Ours[name]
	i := slices.IndexFunc(facts, func(f fact) bool { return f.Name == what })
	if i < 0 {
		i = len(facts)
		facts = append(facts, fact{Name: what, Unit: unit})
	}
	facts[i].Values = append(facts[i].Values, value)
	r.Ours[name] = facts
}

// thisMachine describes the machine. What cannot be found out is left empty.
func thisMachine(s *settings) machine {
	m := machine{Date: time.Now().UTC().Format("2006-01-02"), Cores: runtime.NumCPU(), Go: runtime.Version()}
	m.Kernel = output("uname", "-sr")
	m.Disk = output("findmnt", "-n", "-o", "SOURCE,FSTYPE", "-T", s.disk)
	m.Bulla = strings.TrimPrefix(output(s.bin+"/bullad", "--version"), "bullad version ")
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	info, ok := debug.ReadBuildInfo()
	for _, name := range []string{"github.com/transparency-dev/tessera", "github.com/codenotary/immudb", "modernc.org/sqlite"} {
		if !ok {
			break
		}
		for _, d := range info.Deps {
			if d.Path == name {
				m.Versions = append(m.Versions, d.Path+" "+d.Version)
			}
		}
	}
	return m
}

// output is what a program prints, or nothing if it cannot run.
func output(name string, args ...string) string {
	b, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// spread is the median of values, and between what they lie.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	v := slices.Clone(values)
	if len(v) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(v)
	n := len(v)
	return spread{v[0], (v[(n-1)/2] + v[n/2]) / 2, v[n-1]}
}

func (s spread) String() string {
	if s.low == s.high {
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median), number(s.low), number(s.high))
}

// number is x with three digits that matter.
func number(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case x >= 10_000:
		s := fmt.Sprintf("%.0f", math.Round(x/100)*100)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 0.1 || x == 0:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.2g", x)
}

// of picks a number of each round.
func (r *report) of(name, store string, pick func(measurement) float64) []float64 {
	var v []float64
	for _, m := range r.Cases[name][store] {
		v = append(v, pick(m))
	}
	return v
}

func rate(m measurement) float64 { return m.Rate }
func p50(m measurement) float64  { return m.P50 }
func p99(m measurement) float64  { return m.P99 }

// ratios divides round by round.
func ratios(a, b []float64) []float64 {
	v := make([]float64, 0, len(a))
	for i := range min(len(a), len(b)) {
		v = append(v, a[i]/b[i])
	}
	return v
}

func (r *report) markdown() string {
	var b bytes.Buffer
	m := r.Machine
	fmt.Fprintf(&b, "%s, %d cores of %s, %s, %s, %s, Bulla %s; %d rounds of %g s a case; before the rounds others used %s of the machine.\n",
		m.Date, m.Cores, m.CPU, m.Kernel, m.Disk, m.Go, m.Bulla, r.Rounds, r.Seconds, percent(r.Others))
	fmt.Fprintf(&b, "Peers: %s. Medians of the rounds, between what they lay in brackets.\n", strings.Join(m.Versions, ", "))
	if r.Rounds < 5 || r.Seconds < 5 {
		b.WriteString("**A short run, which shows that everything is measured: its numbers are not to be relied on.**\n")
	}
	r.targets(&b)
	said := map[string]string{}
	for _, c := range cases {
		if r.Cases[c.name] != nil {
			r.table(&b, c, said)
		}
	}
	r.ourTables(&b)
	return b.String()
}

func percent(v []float64) string {
	s := spreadOf(v)
	return fmt.Sprintf("%.0f–%.0f %%", 100*s.low, 100*s.high)
}

// table is what all stores did in a case. How they were configured is said where it was not said before.
func (r *report) table(b *bytes.Buffer, c testCase, said map[string]string) {
	fmt.Fprintf(b, "\n### %s\n\n| | entries/s | p50 ms | p99 ms | flushes of the disk an answer |\n|---|---|---|---|---|\n", c.title)
	for _, st := range c.stores {
		flushes := r.of(c.name, st.name, measurement.perAnswer)
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", st.name, spreadOf(r.of(c.name, st.name, rate)), spreadOf(r.of(c.name, st.name, p50)),
			spreadOf(r.of(c.name, st.name, p99)), number(spreadOf(flushes).median))
	}
	b.WriteString("\n")
	for _, st := range c.stores {
		if said[st.name] != st.note {
			fmt.Fprintf(b, "- %s: %s.\n", st.name, st.note)
			said[st.name] = st.note
		}
	}
}

// targets compares with what is aimed at, round by round: both sides of a ratio were measured within a minute.
func (r *report) targets(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n| case | aim | measured |\n|---|---|---|\n")
	row := func(c, aim string, values []float64) {
		if len(values) > 0 {
			fmt.Fprintf(b, "| %s | %s | %s |\n", c, aim, spreadOf(values))
		}
	}
	for _, c := range cases {
		at := func(store string, pick func(measurement) float64) []float64 { return r.of(c.name, store, pick) }
		against := func(store string, pick func(measurement) float64) []float64 {
			return ratios(at(aimed, pick), at(store, pick))
		}
		switch c.name {
		case "single":
			row(c.title, "p50 at most 2.5 times the disk's", against(diskName, p50))
			row("", "p99 at most 6 times the disk's", against(diskName, p99))
		case "many", "bulk":
			for _, st := range c.stores {
				if st.open == nil {
					continue
				}
				aim := "no aim: times the rate of " + st.name
				if n, ok := c.aim[st.name]; ok {
					aim = fmt.Sprintf("at least %g times the rate of %s", n, st.name)
				}
				row(c.title, aim, against(st.name, rate))
				if c.name == "many" && c.aim[st.name] > 0 {
					row("", "p99 below that of "+st.name+" (1)", against(st.name, p99))
				}
			}
		}
	}
	for _, a := range aims {
		for _, f := range r.Ours[a.name] {
			if f.Name == a.fact {
				row(a.title, a.aim, f.Values)
			}
		}
	}
}

// aims of the cases that no peer has.
var aims = []struct{ name, fact, title, aim string }{
	{"hsm", "16 x 100, ratio", "HSM 5 ms slower, 16 x 100", "at least 0.8 of the fast one's rate"},
	{"reads", "read, each with its proof", "reads while 50,000 entries/s are written", "at least 20,000/s"},
	{"reads", "p99 of writes, ratio", "", "p99 of the writes at most 1.2 times"},
	{"overload", "taken of sustained, ratio", "four times the load", "at least 0.9 of the best is taken"},
	{"growth", "ratio", "rate at the end of growth", "at least 0.9 of that at a million"},
	{"growth", "start until ready, with the devices of dev", "start with that log", "under 3 s"},
	{"growth", "resident memory at its highest", "memory with that log", "under 300 MB"},
}

// titles of the cases that no peer has, in their order.
var titles = []struct{ name, title string }{
	{"hsm", "HSM slowed down by 5 ms a signature"},
	{"reads", "Random entries read, over http.sock by 16 connections, while 16 producers write 50,000 entries/s in requests of 100"},
	{"overload", "Four times the sustained load, offered by 16 producers that do not wait"},
	{"shape", "Other events, another key, several logs"},
	{"growth", "A large log"},
}

// ourTables are the cases that no peer has.
func (r *report) ourTables(b *bytes.Buffer) {
	for _, t := range titles {
		if len(r.Ours[t.name]) == 0 {
			continue
		}
		fmt.Fprintf(b, "\n### %s\n\n| | | |\n|---|---|---|\n", t.title)
		for _, f := range r.Ours[t.name] {
			fmt.Fprintf(b, "| %s | %s | %s |\n", f.Name, spreadOf(f.Values), f.Unit)
		}
	}
}

// writeJSON writes everything to a file, if it has a name.
func (r *report) writeJSON(path string) error {
	if path == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// The section of a document that a run replaces lies between these lines.
const (
	beginMark = "<!-- begin of make bench-peers -->\n"
	endMark   = "<!-- end of make bench-peers -->\n"
)

// writeDoc replaces the section of a document, if it has a name.
func (r *report) writeDoc(path string) error {
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(b, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no section between %q and %q", path, beginMark, endMark)
	}
	text := string(before) + beginMark + r.markdown() + endMark + string(after)
	return os.WriteFile(path, []byte(text), 0o644)
}
