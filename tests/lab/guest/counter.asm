; A guest of 512 bytes: a boot sector for a PC BIOS that counts the BIOS clock's ticks, 18.2 a second.
;
; Four times a second it writes sector 1 of the disk it was booted from, whole and in one request:
;   byte 0   "PHYCOUNT"
;   byte 8   u32  boots: how often the guest has started from this disk, this time included
;   byte 12  u32  count: ticks counted in all boots
; Once a second it prints to the first serial port:
;   boot <boots> count <count>            (" write error" follows if the last write failed)
;
; At its start it reads the sector and goes on from there. A disk without the magic starts at zero.

        bits 16
        org 0x7c00

SECTOR  equ 0x8000              ; the copy of sector 1 in memory
BOOTS   equ SECTOR + 8
COUNT   equ SECTOR + 12
TICKS   equ 0x46c               ; the BIOS's tick counter
COM1    equ 0x3f8

start:  jmp     0:main
main:   xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7c00
        cld
        mov     [drive], dl
        sti

        mov     dx, COM1 + 3    ; 115200 baud, 8 bits, no parity
        mov     al, 0x80
        out     dx, al
        mov     dx, COM1
        mov     ax, 1
        out     dx, al
        inc     dx
        mov     al, 0
        out     dx, al
        mov     dx, COM1 + 3
        mov     al, 3
        out     dx, al

        mov     ah, 0x42        ; read the sector
        call    disk
        mov     si, magic
        mov     di, SECTOR
        mov     cx, 8
        repe    cmpsb
        je      known
        mov     di, SECTOR      ; none of ours: an empty one
        mov     si, magic
        mov     cx, 8
        rep     movsb
        xor     ax, ax
        mov     cx, (512 - 8) / 2
        rep     stosw
known:  inc     dword [BOOTS]
        call    save

tick:   hlt
        mov     ax, [TICKS]
        cmp     ax, [last]
        je      tick
        mov     [last], ax
        inc     dword [COUNT]
        test    byte [COUNT], 3
        jnz     line
        call    save
line:   dec     byte [left]
        jnz     tick
        mov     byte [left], 18
        mov     si, boot
        call    print
        mov     eax, [BOOTS]
        call    number
        mov     si, count
        call    print
        mov     eax, [COUNT]
        call    number
        cmp     byte [failed], 0
        je      newline
        mov     si, error
        call    print
newline:
        mov     si, crlf
        call    print
        jmp     tick

save:   mov     ax, 0x4300      ; write the sector, no verify
        call    disk
        setc    [failed]
        ret

disk:   mov     si, packet
        mov     dl, [drive]
        int     0x13
        ret

number: mov     ebx, 10         ; eax in decimal
        xor     cx, cx
.split: xor     edx, edx
        div     ebx
        push    dx
        inc     cx
        test    eax, eax
        jnz     .split
.digit: pop     ax
        add     al, '0'
        call    char
        loop    .digit
        ret

print:  lodsb
        test    al, al
        jz      .done
        call    char
        jmp     print
.done:  ret

char:   push    ax
        mov     dx, COM1 + 5
.full:  in      al, dx
        test    al, 0x20
        jz      .full
        pop     ax
        mov     dx, COM1
        out     dx, al
        ret

packet: db      16, 0           ; disk address packet: one sector, to or from 0:SECTOR
        dw      1
        dw      SECTOR, 0
        dq      1
magic:  db      "PHYCOUNT"
boot:   db      "boot ", 0
count:  db      " count ", 0
error:  db      " write error", 0
crlf:   db      13, 10, 0
drive:  db      0
failed: db      0
left:   db      18
last:   dw      0

        times   510 - ($ - $$) db 0
        dw      0xaa55
