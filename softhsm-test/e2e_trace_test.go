package softhsmtest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestSyncBeforeReceipt watches the daemon's system calls: kill -9 cannot show that what was acknowledged is on the disk, the order of
// sync and answer can.
func TestSyncBeforeReceipt(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	trace := filepath.Join(dir, "trace")
	appliance := filepath.Join(dir, "d")
	c := startChild(t, nil, "strace", "-f", "-y", "-s", "65536", "-o", trace, "-e", "trace=fdatasync,fsync,write,sendto,sendmsg,writev,pwrite64",
		program(t, "bullad"), "dev", "--dir", appliance)
	c.line("ready")
	client := dial(t, appliance)
	const appends = 12
	for i := range appends {
		if _, err := client.Append(t.Context(), "", fmt.Appendf(nil, `{"type":"trace.test","data":{"mark":%q}}`, mark(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	// A signal to the group reaches the daemon; strace ends with it and has then written everything.
	if err := syscall.Kill(-c.cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.exit()
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkSyncOrder(string(b), filepath.Join(appliance, "dev.db-wal"), appends); err != nil {
		t.Error(err)
	}
}

// mark is what tells the n-th event apart in a trace.
func mark(n int) string { return fmt.Sprintf("mark-%04d.", n) }

var (
	traced  = regexp.MustCompile(`^(\d+) +(?:(\w+)\((\d+)<([^>]*)>(.*)|<\.\.\. (\w+) resumed>(.*))$`)
	outcome = regexp.MustCompile(`\) += (-?\d+)[^"]*$`)
)

// call is a system call in a trace.
type call struct {
	name, file, text string
	state            int // of the event waited for, when the call began
}

// checkSyncOrder reads a trace by strace -f -y of a daemon that took n events, one after the other, as requests 1 to n of one connection
// of sign.sock. Each answer must begin only after the event's record was written to the write-ahead file, and that was synced.
func checkSyncOrder(trace, log string, n int) error {
	const (
		waiting = iota // for the event's record
		written        // it is in the file
		durable        // and on the disk
	)
	pending := map[string]call{}
	next, state := 1, waiting
	for i, line := range strings.Split(strings.TrimSuffix(trace, "\n"), "\n") {
		m := traced.FindStringSubmatch(line)
		if m == nil {
			continue // a signal, an exit, or a call without a file
		}
		var c call
		if m[2] != "" {
			c = call{m[2], m[4], m[5], state}
			if strings.Contains(c.name, "write") || strings.HasPrefix(c.name, "send") {
				if id := fmt.Sprintf(`{\"id\":%d,\"status\":\"ok\"`, next); c.file != log && strings.Contains(c.text, id) {
					if state != durable {
						return fmt.Errorf("line %d: event %d was acknowledged when its commit was in step %d of %d: %.200s", i+1, next, state, durable, line)
					}
					next, state = next+1, waiting
				}
			}
			if strings.HasSuffix(line, "<unfinished ...>") {
				pending[m[1]] = c
				continue
			}
		} else {
			var ok bool
			if c, ok = pending[m[1]]; !ok || c.name != m[6] {
				return fmt.Errorf("line %d resumes what was not begun: %.200s", i+1, line)
			}
			delete(pending, m[1])
			c.text = strings.TrimSuffix(c.text, " <unfinished ...>") + m[7]
		}
		// The call has returned.
		result := outcome.FindStringSubmatch(line)
		if c.file != log || result == nil || strings.HasPrefix(result[1], "-") {
			continue
		}
		switch c.name {
		case "pwrite64":
			if state == waiting && strings.Contains(c.text, mark(next)) {
				state = written
			}
		case "fdatasync", "fsync":
			if c.state == written && state == written {
				state = durable
			}
		}
	}
	if next != n+1 {
		return fmt.Errorf("the trace shows %d answers of %d", next-1, n)
	}
	return nil
}

func TestCheckSyncOrder(t *testing.T) {
	t.Parallel()
	const (
		entry  = "7 pwrite64(16</d/dev.db-wal>, \"\\0{\\\"mark\\\":\\\"mark-0001.\\\"}\", 4096, 8192) = 4096\n"
		other  = "7 pwrite64(16</d/dev.db-wal>, \"\\0{\\\"mark\\\":\\\"mark-0002.\\\"}\", 4096, 8192) = 4096\n"
		moved  = "7 pwrite64(14</d/dev.db>, \"\\0{\\\"mark\\\":\\\"mark-0001.\\\"}\", 4096, 8192) = 4096\n7 fdatasync(14</d/dev.db>) = 0\n"
		sync   = "7 fdatasync(16</d/dev.db-wal>) = 0\n"
		begun  = "7 fdatasync(16</d/dev.db-wal> <unfinished ...>\n"
		ended  = "7 <... fdatasync resumed>)          = 0\n"
		broken = "7 fdatasync(16</d/dev.db-wal>) = -1 EIO (Input/output error)\n"
		seal   = "7 fdatasync(12</d/sealer.json>) = 0\n"
		answer = "9 write(22<socket:[99]>, \"\\0\\0\\1\\0{\\\"id\\\":1,\\\"status\\\":\\\"ok\\\",\\\"checkpoint\\\":\\\"x\\\"}\", 260) = 260\n"
		early  = "9 write(22<socket:[99]>, \"\\0\\0\\1\\0{\\\"id\\\":1,\\\"status\\\":\\\"ok\\\",\\\"checkpoint\\\":\\\"x\\\"}\", 260 <unfinished ...>\n"
		late   = "9 <... write resumed>) = 260\n"
		noise  = "8 --- SIGURG {si_signo=SIGURG} ---\n8 write(4<anon_inode:[eventfd]>, \"\\1\", 8) = 8\n"
	)
	for name, test := range map[string]struct {
		trace string
		ok    bool
	}{
		"in order":                       {entry + noise + sync + answer, true},
		"interleaved, in order":          {entry + begun + noise + ended + early + late, true},
		"not synced":                     {entry + answer + sync, false},
		"begun before the sync":          {entry + early + sync + late, false},
		"while the sync runs":            {entry + begun + answer + ended, false},
		"the sync failed":                {entry + broken + answer, false},
		"another file was synced":        {entry + seal + answer, false},
		"only in the other file":         {moved + answer, false},
		"another event's commit":         {other + sync + answer, false},
		"the entry after its sync":       {sync + entry + answer, false},
		"a sync from before the write":   {begun + entry + ended + answer, false},
		"never acknowledged":             {entry + sync, false},
		"a trace of nothing":             {"", false},
		"resumed what was never started": {entry + ended + answer, false},
	} {
		if err := checkSyncOrder(test.trace, "/d/dev.db-wal", 1); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
