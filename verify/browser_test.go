//go:build browser

package verify_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bulla/verify"
)

// The page in a real browser: Debian's chromium, headless, driven through its debugging pipe (no port, no library). `make browser` runs
// this, with BULLA_CHROMIUM as the browser; where BULLA_SCREENSHOTS is a directory, it leaves pictures and prints there.

// browser is a running chromium with one tab.
type browser struct {
	t       *testing.T
	in      io.WriteCloser
	answers chan map[string]any // those with an id, in order
	events  chan map[string]any
	session string
	id      int
}

// patience bounds every wait for the browser.
const patience = 60 * time.Second

func openBrowser(t *testing.T) *browser {
	t.Helper()
	path := os.Getenv("BULLA_CHROMIUM")
	if path == "" {
		t.Fatal("BULLA_CHROMIUM names no browser: run `make browser`")
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	theirs, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, yours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{theirs, yours} // 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if err := yours.Close(); err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, in: in, answers: make(chan map[string]any, 1), events: make(chan map[string]any, 4096)}
	gone := make(chan struct{})
	go b.listen(out, gone)
	t.Cleanup(func() { // before the directory of its user data is removed
		b.command("Browser.close", nil)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the browser ends with %v", err)
		}
		<-gone
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	target := b.command("Target.createTarget", map[string]any{"url": "about:blank"})
	b.session = b.command("Target.attachToTarget", map[string]any{"targetId": target["targetId"], "flatten": true})["sessionId"].(string)
	for _, domain := range []string{"Page", "Runtime", "Log", "Network", "Accessibility", "Audits", "Security"} {
		b.command(domain+".enable", nil)
	}
	return b
}

// listen sorts what the browser says: each message ends with a zero byte.
func (b *browser) listen(out *os.File, gone chan<- struct{}) {
	defer close(gone)
	for r := bufio.NewReader(out); ; {
		raw, err := r.ReadBytes(0)
		if err != nil {
			if err := out.Close(); err != nil {
				b.t.Error(err)
			}
			return
		}
		var m map[string]any
		if err := json.Unmarshal(raw[:len(raw)-1], &m); err != nil {
			b.t.Errorf("the browser says %.200q: %v", raw, err)
			return
		}
		if _, ok := m["id"]; ok {
			b.answers <- m
			continue
		}
		b.events <- m
	}
}

// command asks the browser for something.
func (b *browser) command(method string, params map[string]any) map[string]any {
	b.t.Helper()
	b.id++
	m := map[string]any{"id": b.id, "method": method, "params": params}
	if b.session != "" && method != "Browser.close" {
		m["sessionId"] = b.session
	}
	raw, err := json.Marshal(m)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(raw, 0)); err != nil {
		b.t.Fatal(err)
	}
	select {
	case a := <-b.answers:
		if a["error"] != nil || a["id"] != float64(b.id) {
			b.t.Fatalf("%s: %v", method, a)
		}
		result, _ := a["result"].(map[string]any)
		return result
	case <-time.After(patience):
		b.t.Fatalf("%s: no answer", method)
		return nil
	}
}

// load loads a file, and returns what happened meanwhile.
func (b *browser) load(path string) (events []map[string]any) {
	b.t.Helper()
	b.command("Page.navigate", map[string]any{"url": "file://" + path})
	for {
		select {
		case e := <-b.events:
			events = append(events, e)
			if e["method"] == "Page.loadEventFired" {
				return events
			}
		case <-time.After(patience):
			b.t.Fatalf("%s is not loaded", path)
		}
	}
}

// eval is the value of an expression in the page, into v.
func (b *browser) eval(expression string, v any) {
	b.t.Helper()
	r := b.command("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true})
	if r["exceptionDetails"] != nil {
		b.t.Fatalf("%s: %v", expression, r["exceptionDetails"])
	}
	raw, err := json.Marshal(r["result"].(map[string]any)["value"])
	if err != nil {
		b.t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		b.t.Fatalf("%s is %s: %v", expression, raw, err)
	}
}

// leave leaves a file where BULLA_SCREENSHOTS says.
func leave(t *testing.T, name string, data any) []byte {
	t.Helper()
	var raw []byte
	if err := json.Unmarshal(fmt.Appendf(nil, "%q", data), &raw); err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("BULLA_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return raw
}

// pages are reports of each verdict, on a log with everything and on that of the vectors, and one in which everything is hostile.
func pages(t *testing.T) map[string]*verify.Report {
	t.Helper()
	b, p := eventful(t)
	honest := b.export()
	tampered := honest.clone()
	replace(tampered, "tile/entries/000", "number 20", "number 29")
	replace(tampered, "tile/entries/000", "number 120", "number 129")
	policy, err := verify.ParsePolicy(readVector(t, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*verify.Report{
		"verified": run(t, honest, p, jsonReceipt(t, b.receipt(7))), "tampered": run(t, tampered, p), "untrusted": run(t, honest, nil),
		"vectors": run(t, load(t), policy, verify.Receipt{Name: "receipt.json", Data: readVector(t, "receipt.json")}), "hostile": hostileReport(t), "nothing": run(t, files{}, p),
	}
}

func TestBrowser(t *testing.T) {
	b := openBrowser(t)
	for name, rep := range pages(t) {
		path := filepath.Join(t.TempDir(), name+".html")
		if err := os.WriteFile(path, []byte(page(t, rep)), 0o644); err != nil {
			t.Fatal(err)
		}
		b.command("Emulation.setDeviceMetricsOverride", map[string]any{"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": false})
		b.quiet(name, path)
		b.says(name, rep)
		b.isReadable(name)
		b.isReachedByKeyboard(name, rep)
		b.isDescribed(name)
		b.prints(name)
		b.command("Emulation.setDeviceMetricsOverride", map[string]any{"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true})
		b.fits(name + " on a telephone")
		leave(t, name+"-phone.png", b.command("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true})["data"])
	}
}

// quiet loads the page: nothing but its file is asked for, and nothing is complained of.
func (b *browser) quiet(name, path string) {
	b.t.Helper()
	for _, e := range b.load(path) {
		params, _ := e["params"].(map[string]any)
		switch e["method"] {
		case "Network.requestWillBeSent":
			if url := params["request"].(map[string]any)["url"]; url != "file://"+path {
				b.t.Errorf("%s: asks for %v", name, url)
			}
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Audits.issueAdded":
			b.t.Errorf("%s: %v", name, params)
		}
	}
}

// says compares the page with the report: as text, not as markup.
func (b *browser) says(name string, rep *verify.Report) {
	b.t.Helper()
	var got struct {
		Verdict, Text string
		Active        int
		Findings      int
	}
	b.eval(`({verdict: document.querySelector(".verdict strong").textContent, text: document.body.textContent,
		active: document.querySelectorAll("script, img, iframe, object, embed, link, form, [onclick], [onerror]").length, findings: document.querySelectorAll("details").length})`, &got)
	if got.Verdict != string(rep.Verdict) && name != "hostile" || got.Active != 0 || got.Findings != len(rep.Findings) {
		b.t.Errorf("%s: verdict %q, %d findings, %d elements that have no place there", name, got.Verdict, got.Findings, got.Active)
	}
	if n := strings.Count(got.Text, "<script>alert(1)</script>"); n == 0 || name == "hostile" && n < 30 {
		b.t.Errorf("%s: the hostile text is there %d times", name, n)
	}
	b.fits(name)
	leave(b.t, name+".png", b.command("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true})["data"])
}

// fits checks that nobody has to scroll sideways.
func (b *browser) fits(name string) {
	b.t.Helper()
	var wide int
	b.eval(`document.documentElement.scrollWidth - document.documentElement.clientWidth`, &wide)
	if wide > 0 {
		b.t.Errorf("%s: %d pixels are beyond the edge", name, wide)
	}
}

// isReadable checks the contrast of all text against what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1; large text, 3).
func (b *browser) isReadable(name string) {
	b.t.Helper()
	var poor []string
	b.eval(`(() => {
		const channels = s => s.match(/[\d.]+/g).map(Number);
		const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
		const behind = e => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
		const poor = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		while (walk.nextNode()) {
			const e = walk.currentNode.parentElement, style = getComputedStyle(e);
			if (!walk.currentNode.data.trim() || e.closest("svg")) continue;
			const [a, b] = [light(channels(style.color)), light(behind(e))], ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
			if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) poor.push(ratio.toFixed(2) + " " + e.outerHTML.slice(0, 120));
		}
		return poor
	})()`, &poor)
	if len(poor) > 0 {
		b.t.Errorf("%s: too little contrast: %s", name, strings.Join(poor, "\n"))
	}
}

// isReachedByKeyboard goes through the page with the tab key: every finding and every link is reached, in the page's order, and is seen to be.
func (b *browser) isReachedByKeyboard(name string, rep *verify.Report) {
	b.t.Helper()
	var want, reached []string
	b.eval(`[...document.querySelectorAll("a[href], summary")].map(e => e.getAttribute("href") || e.parentElement.id)`, &want)
	for steps := 0; len(reached) < len(want) && steps < 3*len(want); steps++ {
		for _, kind := range []string{"rawKeyDown", "keyUp"} {
			b.command("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9})
		}
		var at struct {
			Tag, Name string
			Seen      bool
		}
		b.eval(`(e => ({tag: e.tagName, name: e.getAttribute("href") || e.parentElement?.id, seen: getComputedStyle(e).outlineStyle === "solid"}))(document.activeElement)`, &at)
		if at.Tag != "A" && at.Tag != "SUMMARY" { // a table that is wider than the page can be scrolled
			continue
		}
		reached = append(reached, at.Name)
		if !at.Seen {
			b.t.Errorf("%s: it is not seen that %q has the focus", name, at.Name)
		}
	}
	if !slices.Equal(reached, want) || len(want) < len(rep.Findings)+3 {
		b.t.Errorf("%s: by keyboard %v, want %v", name, reached, want)
	}
}

// isDescribed checks what is read out: headings in order, pictures with a name and a description, tables whose cells have headers.
func (b *browser) isDescribed(name string) {
	b.t.Helper()
	var got struct {
		Levels                  []int
		Bare, Unlabelled, Empty []string
	}
	b.eval(`({levels: [...document.querySelectorAll("h1, h2, h3")].map(h => Number(h.tagName[1])),
		bare: [...document.querySelectorAll("figure svg")].filter(s => !s.querySelector("title")?.textContent || !s.querySelector("desc")?.textContent || s.getAttribute("role") !== "img").map(s => s.outerHTML.slice(0, 80)),
		unlabelled: [...document.querySelectorAll("th:not([scope]), table:not(:has(thead th[scope=col]))")].map(e => e.outerHTML.slice(0, 80)),
		empty: [...document.querySelectorAll("section")].filter(s => !document.getElementById(s.getAttribute("aria-labelledby"))).map(s => s.outerHTML.slice(0, 80))})`, &got)
	for i, level := range got.Levels {
		if i == 0 && level != 1 || i > 0 && (level == 1 || level > got.Levels[i-1]+1) {
			b.t.Errorf("%s: headings of levels %v", name, got.Levels)
			break
		}
	}
	if len(got.Bare)+len(got.Unlabelled)+len(got.Empty) > 0 {
		b.t.Errorf("%s: not described: %v %v %v", name, got.Bare, got.Unlabelled, got.Empty)
	}
	pictures := 0
	for _, n := range b.command("Accessibility.getFullAXTree", nil)["nodes"].([]any) {
		node := n.(map[string]any)
		role, _ := node["role"].(map[string]any)
		if said, _ := node["name"].(map[string]any); role != nil && (role["value"] == "image" || role["value"] == "img") {
			if pictures++; said["value"] == "" {
				b.t.Errorf("%s: a picture without a name", name)
			}
		}
	}
	var drawn int
	b.eval(`document.querySelectorAll("figure svg").length`, &drawn)
	if pictures != drawn {
		b.t.Errorf("%s: %d pictures are read out, %d are drawn", name, pictures, drawn)
	}
}

// prints checks the page on paper: nothing that is for the screen alone, all findings open, a few sheets of A4.
func (b *browser) prints(name string) {
	b.t.Helper()
	b.command("Emulation.setEmulatedMedia", map[string]any{"media": "print"})
	var nav string
	b.eval(`getComputedStyle(document.querySelector("nav")).display`, &nav)
	var closed int
	b.eval(`document.querySelectorAll("details:not([open])").length`, &closed)
	b.command("Emulation.setEmulatedMedia", map[string]any{"media": ""})
	pdf := leave(b.t, name+".pdf", b.command("Page.printToPDF", map[string]any{"preferCSSPageSize": true, "printBackground": true})["data"])
	sheets := len(regexp.MustCompile(`/Type /Page\b[^s]`).FindAll(pdf, -1))
	if nav != "none" || closed > 0 || !bytes.HasPrefix(pdf, []byte("%PDF-")) || sheets < 1 || sheets > 20 {
		b.t.Errorf("%s on paper: %d sheets, contents %s, %d findings closed", name, sheets, nav, closed)
	}
}
